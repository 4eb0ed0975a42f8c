from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("jobs", "0002_job_priority"),
    ]

    operations = [
        migrations.AddField(
            model_name="job",
            name="web",
            field=models.CharField(blank=True, editable=False, max_length=16),
        ),
    ]
