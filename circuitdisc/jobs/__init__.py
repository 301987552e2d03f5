"""The commands beside `discover`: a file each, light to import; torch and Hydra are loaded when one runs."""
