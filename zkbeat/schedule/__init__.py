"""celery beat's schedule, kept in ZooKeeper: `celery beat -S zookeeper`. Runs in the process that is beat."""
