"""What stages are made of: timing, report rows, the bundle, a device's session."""
