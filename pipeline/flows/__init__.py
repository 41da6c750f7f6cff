"""The Prefect flow and what it drives. The only place that imports Prefect or runs DVC."""
