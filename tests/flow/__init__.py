"""Read first: what users see, through the public doors of a whole deployment."""
