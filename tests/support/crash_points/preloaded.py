"""What a step would load late, for the process that forks steps: the vocabulary takes most of a second."""

from rowvec.embedders.provider.tokens import count

count("The vocabulary is loaded at the first use.")
