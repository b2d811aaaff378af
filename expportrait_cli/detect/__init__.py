"""Faces, landmarks, crops, mattes and motion found in pictures: what the stages measure from."""
