"""What is sent to a device: files, golden answers, sample images, instructions."""
