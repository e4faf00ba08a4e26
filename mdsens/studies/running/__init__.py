"""Running of studies, task by task, in this process, in several, or by Dask."""
