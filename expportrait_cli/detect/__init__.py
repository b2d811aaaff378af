"""Detection in pictures: faces, landmarks, mattes, optical flow, normals; one adapter for each library.

No module here depends on the parameters of a head model.
"""
