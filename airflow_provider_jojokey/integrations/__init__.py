"""Optional integrations: asset events, lineage, metrics and traces."""
