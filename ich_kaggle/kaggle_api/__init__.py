"""Kaggle's API: the client, submissions, kernels and their rules, and the package as a wheel."""
