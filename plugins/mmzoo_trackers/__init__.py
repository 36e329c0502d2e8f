"""Log trainings to the trackers that `training.report_to` names."""
