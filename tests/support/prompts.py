"""Prompts of our own for tests and scripts: chat questions, text and code to continue."""

CHAT = (
    "What is the capital of France?",
    "Explain why the sky is blue in two sentences.",
    "Write a haiku about the sea.",
    "List five fruits and a colour for each.",
    "How do I boil an egg?",
    "Summarise the story of Cinderella.",
    "What is 17 times 23? Show your steps.",
    "Translate 'good morning, my friend' into Spanish.",
    "Give me three names for a small bakery.",
    "Write a Python function that checks whether a number is prime.",
    "What are the advantages of learning a second language?",
    "Describe a rainy day in the city.",
    "Who wrote Romeo and Juliet, and when?",
    "What is the difference between a list and a tuple in Python?",
    "Write a polite email asking for a day off.",
    "Tell me a short joke about computers.",
)
TEXT = (
    "The history of the city of Rome begins",
    "def quicksort(items):\n    ",
    "Dear customer, we are sorry to hear that your order",
    "Once upon a time, in a village by the sea,",
    "The three most important rules of good writing are",
    'import json\n\nwith open("data.json") as file:\n',
    "In 1969, the first people landed on",
    "Ingredients:\n- 200 g flour\n- 2 eggs\n",
    "Q: What is photosynthesis?\nA:",
    "The quick brown fox jumps over the lazy dog. The quick brown fox",
    "SELECT name, age FROM users WHERE",
    "Water boils at 100 degrees Celsius because",
    "1, 1, 2, 3, 5, 8, 13,",
    "Chapter 1\n\nIt was a cold and windy night when",
    "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n",
    "To whom it may concern:\n\nI am writing to recommend",
)


def chat(question: str) -> list[dict[str, str]]:
    """One user turn."""
    return [{"role": "user", "content": question}]


PROMPTS: tuple[str | list[dict[str, str]], ...] = (*(chat(question) for question in CHAT), *TEXT)
