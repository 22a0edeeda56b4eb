//! RabbitMQ is killed, stopped, emptied, and loses a stream; a client comes back at another node.
