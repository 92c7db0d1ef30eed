"""What is measured of images and runs, and by which protocol."""
