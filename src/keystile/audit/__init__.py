"""The trail: events, the spool a worker writes, the ledger the control process keeps."""
