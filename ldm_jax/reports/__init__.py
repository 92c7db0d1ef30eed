"""What is written to be read: pages of trainings, and the tables and plots of all pages."""
