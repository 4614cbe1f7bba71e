"""What a person or a cron job runs: sources, the command line, local runs, exports."""
