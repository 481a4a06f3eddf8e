"""Tools that show a run while it goes, beside the run directory: TensorBoard, Weights & Biases, MLflow."""
