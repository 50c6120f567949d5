#!/bin/bash
exec apache2 -DFOREGROUND
