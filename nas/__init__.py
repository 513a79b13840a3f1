"""Who decides: the search service - Ray Tune runs the trials, Optuna keeps the study, MLflow shows the results."""
