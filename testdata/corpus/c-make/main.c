#include "greet.h"

int main(int count, char **words)
{
	return greet(count > 1 ? words[1] : "nobody");
}
