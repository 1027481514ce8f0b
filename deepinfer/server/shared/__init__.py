"""What the API processes of one server hold in common: limits, figures and stored responses."""
