"""Facts about the machine: CPU, drivers, sensors and power modes."""
