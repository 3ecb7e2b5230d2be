"""How emoji-llava was made: a tower is trained before a frozen language model; `make emoji-model` makes it again."""
