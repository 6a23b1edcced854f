"""What everything else stands on: errors, records, the store, the console. Imports nothing of ours; loads no torch."""
