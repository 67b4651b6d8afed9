"""What two services must agree on byte for byte, and the one bus client.

A module with a single importer belongs to that service. `shared` never imports `services`.
"""
