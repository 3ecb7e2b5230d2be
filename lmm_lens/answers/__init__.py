"""What a model answers: answers as tokens, what a forward says of them, and the numbers made of that."""
