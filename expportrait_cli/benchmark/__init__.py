"""The benchmark: many films of several programs, made or read, scored and set side by side."""
