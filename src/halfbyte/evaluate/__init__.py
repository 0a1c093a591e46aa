"""Evaluation: scores of answers, paired statistics, comparisons with a verdict, reports."""
