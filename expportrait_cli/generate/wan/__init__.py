"""Wan video transformers as painters; needs the packages of `pip install 'expportrait-cli[wan]'` (`packages`)."""
