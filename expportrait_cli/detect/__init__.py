"""What is found in single pictures by networks: faces, landmarks, mattes, optical flow, normals; one adapter a library.

Nothing here knows a head model.
"""
