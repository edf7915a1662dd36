"""What the machine is: the one place that reads its CPU, its drivers, its sensors and its power modes."""
