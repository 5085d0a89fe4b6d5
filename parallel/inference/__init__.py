"""What a trained model makes: text, and samples."""
