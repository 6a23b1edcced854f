"""Where images come from, one file a source; `prepare` decodes any of them once."""
