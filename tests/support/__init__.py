"""What tests share: small models and folders, stand-ins for endpoints, oracles."""
