"""What is measured: distances between distributions of features, and scores of image pairs."""
