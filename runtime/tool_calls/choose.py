from .deepseek import DEEPSEEK, DEEPSEEK_V31
from .hermes import HERMES
from .llama import LLAMA
from .mistral import MISTRAL, MISTRAL_ARGS
FORMATS = {each.name: each for each in (HERMES, LLAMA, MISTRAL, MISTRAL_ARGS, DEEPSEEK, DEEPSEEK_V31)}
