"""What a pipeline needs before its first run: a draft of its file, and checks of everything that the file names."""
