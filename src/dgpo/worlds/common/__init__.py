"""What both worlds share: the tokenizer of small vocabularies, and how like a picture is to one drawn again."""
