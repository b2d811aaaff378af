"""The nets that this machine can run: from the wheel of mediapipe, or from files through MediaPipe Tasks."""

from expportrait_cli.weights.catalogue import mediapipe_interface

match mediapipe_interface():
    case "legacy":
        from expportrait_cli.detect.mediapipe_adapter import FaceDetector, LandmarkNet, PoseNet, SelfieNet
    case "tasks":
        from expportrait_cli.detect.tasks_adapter import FaceDetector, LandmarkNet, PoseNet, SelfieNet

__all__ = ["FaceDetector", "LandmarkNet", "PoseNet", "SelfieNet"]
