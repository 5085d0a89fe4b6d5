"""The processes of one run: who each is, how they meet, what starts them, and what is said when one fails."""
