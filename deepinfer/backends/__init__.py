"""The libraries that run engines, one module each; `base.py` says what each must keep."""
