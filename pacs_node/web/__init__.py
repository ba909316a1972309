"""The administrator's page: server-rendered, read-only, loopback only until it has accounts."""
