"""What several test files share: servers, clients, stores, and the harnesses around them."""
