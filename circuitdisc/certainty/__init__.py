"""How far a circuit can be believed: rivals, specificity, mixtures, backups."""
