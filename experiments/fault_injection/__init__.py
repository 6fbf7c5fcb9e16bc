"""Runs that are killed, or watched for long, to test what training promises."""
