"""Everything about text: chat template, tokens, stop strings. Pure but for loading one folder."""
