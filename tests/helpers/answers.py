"""A few answers and what they should have been: right, nearly right, empty and wrong ones."""

OURS = ["Press one to leave.", "You have two new messages", "", "It is Monday, March third.", "zero"]
THEIRS = [
    "Press one to leave the menu.",
    "You have two old messages.",
    "Hello there.",
    "It is Monday, March third.",
    "b",
]
