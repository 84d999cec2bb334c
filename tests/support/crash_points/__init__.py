"""Kills each command at each point of its run, runs it again, and compares the end with an uninterrupted run's."""
