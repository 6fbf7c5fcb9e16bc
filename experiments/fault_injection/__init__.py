"""Runs that are killed, or watched for a long time, to test the promises of training."""
