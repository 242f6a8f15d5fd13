"""What is stored: how much of it there is, how long it stays, and its end."""
